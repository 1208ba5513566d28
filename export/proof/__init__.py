"""Does the engine still do what the network did? Figures, gates, and the report that shows them."""
