"""What both commands do alike: errors in one line, exit codes, and text of strangers made harmless.

The only file of this room that knows click, for the two rooms that have commands may not know each other.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

import click


class Program(click.Group):
    """A click program that reports what a user can mend as `NAME: what, why, what next`.

    An error carries its exit code as `exit_code`; a missing file and an unknown name are wrong usage. Anything else is
    a bug and stays a traceback.
    """

    interrupted = ("stopped", 130)
    """What to say after Ctrl-C, and the exit code."""

    alone = False
    """Whether the process was started as this command, and ends with it."""

    def main(self, args: Any = None, *more: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        self.alone = standalone_mode and args is None
        if self.alone and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _end)
        try:
            result = super().main(args, *more, standalone_mode=False, **kwargs)
        except click.exceptions.Abort:
            code = self._say(*self.interrupted)
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else self.name
            code = self._say(f"{error.format_message().rstrip('.')}; see {command} --help", 2)
        except click.ClickException as error:
            code = self._say(error.format_message(), error.exit_code)
        except (FileNotFoundError, LookupError) as error:
            if isinstance(error, (KeyError, IndexError)):
                raise
            code = self._say(message(error), 2)
        except OSError as error:
            code = self._say(message(error), 1)
        except Exception as error:
            if not hasattr(error, "exit_code"):
                raise
            code = self._say(str(error), error.exit_code)
        else:
            code = result if isinstance(result, int) else 0
        if standalone_mode:
            sys.exit(code)
        return code

    def _say(self, message: str, code: int) -> int:
        click.echo(f"{self.name}: {harmless(message)}", err=True)
        return code


def _end(number: int, frame: FrameType | None) -> None:
    """Ended by a signal, with everything half-written removed."""
    sys.exit(128 + number)


def harmless(text: str) -> str:
    """The text in one line, without control codes."""
    return "".join(c if c.isprintable() else " " for c in text)


def plural(count: int, noun: str) -> str:
    """`1 prompt`, `2 prompts`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def message(error: BaseException) -> str:
    """What the error says, with the file that the system names apart."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror.lower()}; mend that and run the same command again"
    return str(error.args[0]) if error.args else type(error).__name__
