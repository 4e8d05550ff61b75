/* The numbers of `statistics`, of float32 activations, in one read. `compiled.py` builds and calls this. */

#include <math.h>
#include <stddef.h>
#include <string.h>

enum { BLOCK = 512, CHUNK = 1 << 14 };

struct sums {
    double magnitude, square, largest, nonfinite;             /* of x */
    double change, change_square, product, nonfinite_changes; /* of x and the step before */
};

/* Sums of a block are float, in as many lanes as the processor has. Those of x are made alike with a step before and
   without, to the last bit. Both return 0, and add nothing, if not all is finite. */
static int add_step(const float *now, int size, struct sums *total)
{
    float magnitude = 0, square = 0;
    int largest = 0; /* as bits, whose order is that of magnitudes */
#pragma omp simd reduction(+ : magnitude, square) reduction(max : largest)
    for (int i = 0; i < size; i++) {
        float x = fabsf(now[i]);
        int bits;
        memcpy(&bits, &x, sizeof bits);
        largest = bits > largest ? bits : largest;
        magnitude += x;
        square += x * x;
    }
    if (!isfinite(magnitude + square))
        return 0;
    float most;
    memcpy(&most, &largest, sizeof most);
    total->magnitude += magnitude;
    total->square += square;
    total->largest = most > total->largest ? most : total->largest;
    return 1;
}

static int add_transition(const float *now, const float *before, int size, struct sums *total)
{
    float change = 0, change_square = 0, product = 0;
#pragma omp simd reduction(+ : change, change_square, product)
    for (int i = 0; i < size; i++) {
        float x = now[i], y = before[i], d = x - y;
        change += fabsf(d);
        change_square += d * d;
        product += x * y;
    }
    if (!isfinite(change + change_square + product))
        return 0;
    total->change += change;
    total->change_square += change_square;
    total->product += product;
    return 1;
}

/* The same, one element after the other; what is not finite is left out and counted. */
static void add_step_carefully(const float *now, int size, struct sums *total)
{
    for (int i = 0; i < size; i++) {
        float x = fabsf(now[i]);
        if (isfinite(x)) {
            total->magnitude += x;
            total->square += x * x;
            total->largest = x > total->largest ? x : total->largest;
        } else {
            total->nonfinite += 1;
        }
    }
}

static void add_transition_carefully(const float *now, const float *before, int size, struct sums *total)
{
    for (int i = 0; i < size; i++) {
        float x = now[i], y = before[i], d = x - y;
        if (isfinite(d)) {
            total->change += fabsf(d);
            total->change_square += d * d;
        } else {
            total->nonfinite_changes += 1;
        }
        if (isfinite(x) && isfinite(y))
            total->product += x * y;
    }
}

static struct sums sum_chunk(const float *now, const float *before, float *keep, ptrdiff_t size)
{
    struct sums total = {0};
    for (ptrdiff_t start = 0; start < size; start += BLOCK, now += BLOCK) {
        int length = size - start < BLOCK ? size - start : BLOCK;
        if (!add_step(now, length, &total))
            add_step_carefully(now, length, &total);
        if (before && !add_transition(now, before + start, length, &total))
            add_transition_carefully(now, before + start, length, &total);
        if (keep)
            memcpy(keep + start, now, length * sizeof *keep);
    }
    return total;
}

static ptrdiff_t chunks_of(ptrdiff_t length)
{
    return (length + CHUNK - 1) / CHUNK;
}

/* Bytes that `measure` needs to work in. */
ptrdiff_t room(const ptrdiff_t *shape)
{
    return shape[0] * shape[1] * chunks_of(shape[2]) * sizeof(struct sums);
}

/* Step sums (group, 5) and transition sums (group, 4) of x = `now`, which is copied to `keep` on the way.

   shape: groups, rows, elements of a row, which lie one after the other. strides: of group and row in now, before, keep.
   `before` and `keep` may be null, or the same memory. The number of threads does not change what is found. */
void measure(const float *now, const float *before, float *keep, const ptrdiff_t *shape, const ptrdiff_t *strides,
             int threads, struct sums *work, double *steps, double *changes)
{
    ptrdiff_t groups = shape[0], rows = shape[1], length = shape[2], each = chunks_of(length);
#pragma omp parallel for num_threads(threads) schedule(static) if (groups * rows * each > 4)
    for (ptrdiff_t i = 0; i < groups * rows * each; i++) {
        ptrdiff_t start = i % each * CHUNK, row = i / each % rows, group = i / each / rows;
        work[i] = sum_chunk(now + group * strides[0] + row * strides[1] + start,
                            before ? before + group * strides[2] + row * strides[3] + start : NULL,
                            keep ? keep + group * strides[4] + row * strides[5] + start : NULL,
                            length - start < CHUNK ? length - start : CHUNK);
    }
    double count = (double)rows * (double)length;
    for (ptrdiff_t group = 0; group < groups; group++) {
        struct sums all = {0};
        for (const struct sums *one = work + group * rows * each; one < work + (group + 1) * rows * each; one++) {
            all.magnitude += one->magnitude;
            all.square += one->square;
            all.largest = one->largest > all.largest ? one->largest : all.largest;
            all.nonfinite += one->nonfinite;
            all.change += one->change;
            all.change_square += one->change_square;
            all.product += one->product;
            all.nonfinite_changes += one->nonfinite_changes;
        }
        double step[] = {all.magnitude, all.square, all.largest, count - all.nonfinite, all.nonfinite};
        memcpy(steps + group * 5, step, sizeof step);
        if (before) {
            double change[] = {all.change, all.change_square, all.product, count - all.nonfinite_changes};
            memcpy(changes + group * 4, change, sizeof change);
        }
    }
}

/* The elements of x at `count` offsets. */
void pick(const float *x, const long long *at, ptrdiff_t count, float *found)
{
    for (ptrdiff_t i = 0; i < count; i++)
        found[i] = x[at[i]];
}

/* Norms over channels, (group, token). shape: groups, tokens, channels; strides of each. */
void norms(const float *x, const ptrdiff_t *shape, const ptrdiff_t *strides, int threads, float *found)
{
    ptrdiff_t tokens = shape[1], channels = shape[2], step = strides[2];
#pragma omp parallel for num_threads(threads) schedule(static) if (shape[0] * tokens * channels > 4 * CHUNK)
    for (ptrdiff_t i = 0; i < shape[0] * tokens; i++) {
        const float *row = x + i / tokens * strides[0] + i % tokens * strides[1];
        float square = 0;
        if (step == 1) {
#pragma omp simd reduction(+ : square)
            for (ptrdiff_t channel = 0; channel < channels; channel++)
                square += row[channel] * row[channel];
        } else {
            for (ptrdiff_t channel = 0; channel < channels; channel++)
                square += row[channel * step] * row[channel * step];
        }
        found[i] = sqrtf(square);
    }
}

/* Mean and standard deviation of now / before over the tokens of each group, without ratios that are not finite. */
void ratios(const float *before, const float *now, ptrdiff_t groups, ptrdiff_t tokens, double *found)
{
    for (ptrdiff_t group = 0; group < groups; group++, before += tokens, now += tokens) {
        double count = 0, mean = 0, square = 0;
        for (ptrdiff_t i = 0; i < tokens; i++)
            if (isfinite(now[i] / before[i])) {
                count += 1;
                mean += now[i] / before[i];
            }
        mean /= count;
        for (ptrdiff_t i = 0; i < tokens; i++)
            if (isfinite(now[i] / before[i]))
                square += (now[i] / before[i] - mean) * (now[i] / before[i] - mean);
        found[2 * group] = mean;
        found[2 * group + 1] = sqrt(square / count);
    }
}
