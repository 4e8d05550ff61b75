"use strict";
// What moves in a report. Without this script, tables and still pictures say the same.
(() => {
  const all = JSON.parse(document.getElementById("numbers").textContent);
  const traces = all.filter((trace) => trace.kinds.length && trace.layers.length); // that have something to draw
  const find = (trace, part) => document.getElementById(`${trace.anchor}-${part}`);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const digits = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(3)).toString());

  // Values of [kind][layer][transition], null where there is none.
  function unpacked(packed, trace) {
    const text = atob(packed.values);
    const [kinds, layers, steps] = [trace.kinds.length, trace.layers.length, trace.steps.length];
    const value = (place) => {
      let code = 0;
      for (let byte = packed.bytes - 1; byte >= 0; byte--) code = 256 * code + text.charCodeAt(packed.bytes * place + byte);
      return code ? packed.low * Math.exp(((code - 1) / packed.steps) * packed.span) : null;
    };
    return Array.from({ length: kinds }, (_, k) => Array.from({ length: layers }, (_, l) =>
      Array.from({ length: steps }, (_, s) => value((k * layers + l) * steps + s))));
  }

  function ticks(low, high) {
    const found = [];
    for (const subs of [[1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 5], [1, 2, 5], [1, 3], [1]]) {
      found.length = 0;
      for (let decade = Math.floor(Math.log10(low)); decade <= Math.ceil(Math.log10(high)); decade++)
        for (const sub of subs) {
          const tick = sub * 10 ** decade;
          if (tick >= low * 0.999 && tick <= high * 1.001) found.push(tick);
        }
      if (found.length <= 7) break;
    }
    return { tickvals: found.map(Math.log10), ticktext: found.map((tick) => Number(tick.toPrecision(2)).toString()) };
  }

  // From the smallest to the largest value of the layer that is drawn.
  function reach(trace) {
    const names = trace.what === "l1" && trace.arrays.low ? ["low", "high"] : [trace.what];
    const values = names.flatMap((name) => trace.arrays[name].flatMap((rows) => rows[trace.layer])).filter((value) => value !== null);
    return values.length ? [Math.min(...values), Math.max(...values)] : [0.1, 1];
  }

  const frame = () => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("text"), size: 12, family: getComputedStyle(document.body).fontFamily },
    dragmode: false,
  });
  const still = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false };
  const axis = () => ({ gridcolor: colour("line"), zeroline: false, fixedrange: true, linecolor: colour("line") });
  const stepNames = (trace) => {
    const last = trace.steps.length - 1;
    const places = [...new Set([0, last - Math.floor(last / 2), last])];
    return { tickvals: places, ticktext: places.map((place) => String(trace.steps[place].paper)) };
  };

  function stepWords(step) {
    return `step ${step.step} → ${step.step + 1} (the paper's ${step.paper}), timestep ${step.timestep}, σ ${step.sigma}`;
  }

  function hover(trace, kind, layer, step) {
    const at = (name) => (trace.arrays[name] ? trace.arrays[name][kind][layer][step] : null);
    const cv = trace.arrays.cv ? `<br>CV over prompts ${at("cv") === null ? "–" : (100 * at("cv")).toFixed(1) + "%"}` : "";
    const relative = at("rel_l1") === null ? "–" : `${(100 * at("rel_l1")).toFixed(2)}%`;
    const told = trace.layers[layer];
    const name = told.name.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
    return `layer ${told.index}, ${name}<br>${stepWords(trace.steps[step])}<br>L1 ${digits(at("l1"))}, relative ${relative}${cv}`;
  }

  function drawMap(trace) {
    const values = trace.arrays[trace.what];
    const narrow = find(trace, "map").clientWidth < 620;
    const count = trace.kinds.length;
    const logs = values.map((rows) => rows.map((row) => row.map((value) => (value === null ? null : Math.log10(value)))));
    const flat = logs.flat(2).filter((value) => value !== null);
    const [low, high] = flat.length ? [Math.min(...flat), Math.max(...flat)] : [-1, 0];
    const height = Math.max(170, 7 * trace.layers.length);
    const rows = trace.layers.length > 14 ? trace.layers.map((_, place) => place).filter((place) => place % Math.ceil(trace.layers.length / 12) === 0) : trace.layers.map((_, place) => place);
    const layout = {
      ...frame(), height: narrow ? count * (height + 50) + 100 : height + 126, margin: { l: 44, r: 10, t: 26, b: 100 },
      grid: narrow ? { rows: count, columns: 1, pattern: "independent", ygap: 60 / (height + 60) } : { rows: 1, columns: count, pattern: "independent", xgap: 0.06 },
      coloraxis: {
        colorscale: "Viridis", cmin: low, cmax: high,
        colorbar: { orientation: "h", thickness: 10, len: narrow ? 0.9 : 0.5, y: 0, yref: "container", yanchor: "bottom",
          ...ticks(10 ** low, 10 ** high) },
      },
      annotations: [], shapes: [],
    };
    const data = trace.kinds.map((kind, place) => {
      const id = place ? String(place + 1) : "";
      layout[`xaxis${id}`] = { ...axis(), ...stepNames(trace), showgrid: false, title: place === count - 1 || !narrow ? { text: "step", font: { size: 11 }, standoff: 4 } : undefined };
      layout[`yaxis${id}`] = { ...axis(), autorange: "reversed", showgrid: false, showticklabels: place === 0 || narrow, tickvals: rows, ticktext: rows.map((row) => String(trace.layers[row].index)), title: place === 0 || narrow ? { text: "layer", font: { size: 11 }, standoff: 4 } : undefined };
      layout.annotations.push({ text: `<b>${kind.toUpperCase()}</b>`, xref: `x${id} domain`, yref: `y${id} domain`, x: 0.5, y: 1, yanchor: "bottom", showarrow: false });
      for (const at of trace.changes[place])
        layout.shapes.push({ type: "line", xref: `x${id}`, yref: `y${id} domain`, x0: at - 0.5, x1: at - 0.5, y0: 0, y1: 1.04, line: { color: "#e3174a", width: 2 } });
      layout.shapes.push({ type: "rect", xref: `x${id} domain`, yref: `y${id}`, x0: 0, x1: 1, y0: trace.layer - 0.5, y1: trace.layer + 0.5, line: { color: colour("text"), width: 1.5 } });
      return {
        type: "heatmap", z: logs[place], coloraxis: "coloraxis", xaxis: `x${id}`, yaxis: `y${id}`, hoverongaps: false,
        text: values[place].map((row, layer) => row.map((_, step) => hover(trace, place, layer, step))),
        hovertemplate: `${kind.toUpperCase()}, %{text}<extra></extra>`,
      };
    });
    return Plotly.react(find(trace, "map"), data, layout, still);
  }

  function drawCurve(trace) {
    const layer = trace.layers[trace.layer];
    const x = trace.steps.map((_, place) => place);
    const data = [];
    trace.kinds.forEach((kind, place) => {
      const mean = trace.arrays[trace.what][place][trace.layer];
      const shown = { color: colour(kind), width: 2 };
      if (trace.what === "l1" && trace.arrays.low) {
        const bound = (name, more) => ({ x, y: trace.arrays[name][place][trace.layer], mode: "lines", line: { width: 0, color: shown.color }, hoverinfo: "skip", showlegend: false, legendgroup: kind, ...more });
        data.push(bound("high", {}), bound("low", { fill: "tonexty", fillcolor: `${shown.color}33` }));
      }
      data.push({ x, y: mean, mode: "lines+markers", marker: { size: 4 }, line: shown, name: kind.toUpperCase(), legendgroup: kind, connectgaps: false,
        text: x.map((step) => hover(trace, place, trace.layer, step)), hovertemplate: `${kind.toUpperCase()}, %{text}<extra></extra>` });
    });
    const what = trace.what === "l1" ? "mean |Δ| (L1)" : "relative L1";
    const marks = ticks(...reach(trace));
    const layout = {
      ...frame(), height: 300, margin: { l: 60, r: 10, t: 34, b: 40 }, legend: { orientation: "h", x: 1, xanchor: "right", y: 1.02, yanchor: "bottom" },
      title: { text: `layer ${layer.index} · ${layer.type.replaceAll("&", "&amp;").replaceAll("<", "&lt;")}`, font: { size: 13 }, x: 0.02, xanchor: "left", y: 0.97 },
      xaxis: { ...axis(), ...stepNames(trace), title: { text: "step, counted down", font: { size: 11 } } },
      yaxis: { ...axis(), type: "log", title: { text: what, font: { size: 11 } }, tickvals: marks.tickvals.map((log) => 10 ** log), ticktext: marks.ticktext },
    };
    return Plotly.react(find(trace, "curve"), data, layout, still);
  }

  function choose(trace, layer) {
    trace.layer = layer;
    find(trace, "layer").value = String(layer);
    for (const panel of find(trace, "small").querySelectorAll("figure"))
      panel.classList.toggle("chosen", Number(panel.dataset.layer) === layer);
    const means = trace.kinds.map((kind, place) => {
      const values = trace.arrays.l1[place][layer].filter((value) => value !== null);
      return `${kind.toUpperCase()} ${values.length ? digits(values.reduce((a, b) => a + b) / values.length) : "–"}`;
    });
    find(trace, "said").textContent = `layer ${trace.layers[layer].index}, ${trace.layers[layer].name}: mean L1 ${means.join(", ")}`;
    return drawMap(trace).then(() => drawCurve(trace));
  }

  function start(trace) {
    trace.arrays = Object.fromEntries(Object.entries(trace.numbers).map(([name, packed]) => [name, unpacked(packed, trace)]));
    trace.what = "l1";
    choose(trace, 0).then(() => {
      find(trace, "map").on("plotly_click", (event) => choose(trace, Math.round(event.points[0].y)));
      document.documentElement.dataset.ready = String(1 + Number(document.documentElement.dataset.ready || 0));
    });
    find(trace, "layer").addEventListener("change", (event) => choose(trace, Number(event.target.value)));
    find(trace, "small").classList.add("chooses");
    find(trace, "small").addEventListener("click", (event) => {
      const panel = event.target.closest("figure");
      if (panel) choose(trace, Number(panel.dataset.layer)).then(() => find(trace, "curve").scrollIntoView({ block: "center" }));
    });
    for (const radio of document.getElementsByName(`${trace.anchor}-what`))
      radio.addEventListener("change", () => { trace.what = radio.value; choose(trace, trace.layer); });
  }

  function startPlans(trace) {
    const slider = find(trace, "slider");
    if (!slider) return;
    const show = () => {
      const plan = trace.plans.rows[Number(slider.value)];
      const faster = plan.faster ? `; at best ${plan.faster} times as fast` : "";
      const verdict = plan.verdict === "cache" ? "" : `; verdict: ${plan.verdict}`;
      const told = `${plan.steps} of ${plan.of} steps computed (${plan.share}); predicted error ${plan.error}${faster}${verdict}`;
      find(trace, "plan").textContent = told;
      slider.setAttribute("aria-valuetext", told);
      find(trace, "command").textContent = plan.command;
      const marks = [...plan.mask].map((one, step) => {
        const mark = document.createElement("span");
        if (one === "1") mark.className = "on";
        mark.title = `step ${step}: ${one === "1" ? "computed" : "left out"}`;
        return mark;
      });
      find(trace, "strip").replaceChildren(...marks);
      find(trace, "strip").setAttribute("aria-label", `steps computed: ${[...plan.mask].flatMap((one, step) => (one === "1" ? [step] : [])).join(", ")}`);
    };
    slider.addEventListener("input", show);
    show();
  }

  const cellsOf = (row) => [...row.cells].map((cell) => cell.textContent.trim());
  const quoted = (cell) => {
    const safe = /^[=+@\t]|^-(?![\d.])/.test(cell) ? `'${cell}` : cell; // a spreadsheet takes such a cell for a formula
    return /[",\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };

  function saveTable(button) {
    const table = document.getElementById(button.dataset.table);
    const text = [...table.rows].map((row) => cellsOf(row).map(quoted).join(",")).join("\n") + "\n";
    const link = document.createElement("a");
    link.href = `data:text/csv;charset=utf-8,${encodeURIComponent(text)}`;
    link.download = button.dataset.name;
    link.click();
  }

  // A click on the name of a column sorts by it, another click the other way.
  function sortable(table) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        const key = (row) => row.cells[column].textContent;
        const number = (row) => parseFloat(key(row));
        const rows = [...table.tBodies[0].rows].sort((one, other) =>
          sign * (Number.isNaN(number(one) + number(other)) ? key(one).localeCompare(key(other)) : number(one) - number(other)));
        table.tBodies[0].replaceChildren(...rows);
      });
    });
  }

  function copy(button) {
    const code = document.getElementById(button.dataset.of);
    const range = document.createRange();
    range.selectNodeContents(code);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    if (document.execCommand("copy")) button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  }

  for (const one of document.querySelectorAll(".live")) one.hidden = false;
  for (const one of document.querySelectorAll(".still")) one.style.display = "none";
  for (const one of document.querySelectorAll(".csv")) {
    one.addEventListener("click", () => saveTable(one));
    sortable(document.getElementById(one.dataset.table));
  }
  for (const one of document.querySelectorAll(".copy")) one.addEventListener("click", () => copy(one));

  for (const one of document.querySelectorAll("details")) one.open = false; // open without this script, and on paper
  addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details")) one.open = true;
  });

  // The first trace is drawn at once, each other when it comes near the window, so that a page of seven opens soon.
  if (traces.length) start(traces[0]);
  const waiting = new Map(traces.slice(1).map((trace) => [find(trace, "map"), trace]));
  const watch = new IntersectionObserver((entries) => {
    for (const entry of entries)
      if (entry.isIntersecting && waiting.has(entry.target)) {
        start(waiting.get(entry.target));
        waiting.delete(entry.target);
        watch.unobserve(entry.target);
      }
  }, { rootMargin: "600px" });
  for (const [element] of waiting) watch.observe(element);
  for (const trace of all) startPlans(trace);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const trace of traces) if (trace.arrays) choose(trace, trace.layer);
  });
})();
