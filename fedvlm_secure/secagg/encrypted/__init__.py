"""CKKS and BFV through TenSEAL: clients encrypt under one shared key, the server adds what it can never decrypt."""
