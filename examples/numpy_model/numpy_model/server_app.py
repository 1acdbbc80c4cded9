"""The server: Flower's FedAvg over sums."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedvlm_secure.engines.flower import SecureStrategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Five rounds."""
    strategy = SecureStrategy(
        FedAvg(min_available_nodes=3, fraction_evaluate=0.0), context.run_config["folder"], metrics={"error": 100.0}
    )
    result = strategy.start(grid, ArrayRecord([np.zeros(3)]), num_rounds=int(context.run_config["rounds"]))
    print(result.arrays.to_numpy_ndarrays()[0].round(3), result.train_metrics_clientapp)
