"""The two apps of a VLM run: a Flower app is a file with ``app = server_app()`` and one with ``app = client_app()``."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedvlm_secure.engines.flower.client import respond
from fedvlm_secure.engines.flower.node import SETTINGS, Node, Prepared
from fedvlm_secure.engines.flower.wire import without
from fedvlm_secure.errors import MisuseError
from fedvlm_secure.federation.settings import Settings
from fedvlm_secure.secagg.plan import Plan


def server_app() -> ServerApp:
    """The server of a VLM run.

    The app's run config holds ``folder``, the server's own, and the deadlines ``arrival-seconds``,
    ``training-seconds`` and ``reply-seconds``. The run's settings are ``settings.toml`` in that folder, the file that
    hospitals have too; without one they are the rest of the run config, under the names that they have in TOML.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        from fedvlm_secure.engines.flower.coordination import Deadlines, run

        config = dict(context.run_config)
        given = config.pop("folder", None)
        if not isinstance(given, str):
            raise MisuseError("run config: folder must name the server's folder")
        folder = Path(given).expanduser()
        seconds = {name: config.pop(f"{name}-seconds", default) for name, default in asdict(Deadlines()).items()}
        file = folder / SETTINGS
        settings = Settings.from_toml(file) if file.exists() else settings_of(config)
        run(grid, settings, folder, Deadlines(**seconds))

    return app


def client_app() -> ClientApp:
    """A hospital of a VLM run, with ``--node-config 'folder="…"'`` for its own folder."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = without(message.content)

        def prepare(node: Node, plan: Plan) -> Prepared:
            from fedvlm_secure.engines.flower import hospital  # model and rows, for this message only
            from fedvlm_secure.engines.flower.job import Start

            return hospital.prepare(node, plan, Start.take(content))

        def finish(node: Node, ending: bytes) -> None:
            from fedvlm_secure.engines.flower import hospital
            from fedvlm_secure.engines.flower.job import Start

            hospital.finish(node, Start.take(content), ending)

        return respond(message, context, prepare, finish)

    return app


def settings_of(config: Mapping[str, Any]) -> Settings:
    """Settings from a run config, whose keys are like ``adapter.strategy``; raises :class:`MisuseError`."""
    return Settings.from_tables({}, [f"{key}={_written(value)}" for key, value in config.items()])


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
