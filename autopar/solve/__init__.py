"""The optimisation: op level per layer class, then one MILP over the model."""
