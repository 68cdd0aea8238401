"""What a dataset folder holds, compared with its plan and its index; whose models may be loaded for that."""
