"""A hospital."""

from fedvlm_secure.engines.flower import client_app

app = client_app()
