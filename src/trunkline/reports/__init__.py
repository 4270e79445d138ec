"""Reports on disk: markdown tables, pictures, and the data behind them."""
