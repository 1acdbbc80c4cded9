"""The server."""

from fedvlm_secure.engines.flower import server_app

app = server_app()
