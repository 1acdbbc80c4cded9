"""The command line: one module per command, and every error one clear line with an exit code that means something.

Heavy packages load inside the commands, so that ``--help`` and a typing mistake answer at once.
"""

import os
import sys
import warnings
from typing import Annotated

import click
import typer

import fedvlm_secure
from fedvlm_secure.cli import audit, bases, budget, compare, data, demo, doctor, ledger, predict, roster, run
from fedvlm_secure.errors import (
    MisuseError,
    PolicyRefusalError,
    PrivacyBudgetExhaustedError,
    ProtocolError,
    VerificationError,
    one_line,
)

USAGE, REFUSED_BY_POLICY, ABORTED, BUDGET_EXHAUSTED, VERIFICATION_FAILED, INTERRUPTED = 2, 3, 4, 5, 6, 130

app = typer.Typer(
    name="fedvlm-secure",
    help="Fine-tune one vision-language model across hospitals; the server sees masked sums only.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(demo.demo)
app.command()(run.run)
app.command()(doctor.doctor)
app.command()(predict.predict)
app.command()(budget.budget)
app.command()(compare.compare)
app.command()(bases.bases)
app.add_typer(audit.app)
app.add_typer(data.app)
app.add_typer(roster.app)
app.add_typer(ledger.app)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fedvlm-secure {fedvlm_secure.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Fine-tune one vision-language model across hospitals; the server sees masked sums only."""


def main() -> None:
    """The entry point: run a command, and turn errors into one line on stderr and an exit code."""
    # Loading bars and deprecations of the packages below say nothing that a user of this program could act on.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        code = app(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except PrivacyBudgetExhaustedError as error:
        _fail(error, BUDGET_EXHAUSTED)
    except (MisuseError, OSError) as error:  # a file that cannot be written, a full disk
        _fail(error, USAGE)
    except PolicyRefusalError as error:
        _fail(error, REFUSED_BY_POLICY)
    except VerificationError as error:
        _fail(error, VERIFICATION_FAILED)
    except ProtocolError as error:
        _fail(error, ABORTED)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    sys.exit(code or 0)


def _fail(error: Exception, code: int) -> None:
    print(one_line(error), file=sys.stderr)
    sys.exit(code)
