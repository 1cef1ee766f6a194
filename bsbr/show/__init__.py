"""All that knows notebooks: figures, tables, and the explorer of attention maps."""
