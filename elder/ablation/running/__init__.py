"""From a plan to finished runs: folders that hold the truth, workers, managers and executors."""
