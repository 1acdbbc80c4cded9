import os

# One thread for BLAS: the tests share two cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
