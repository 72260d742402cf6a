"""Running a plan on the ranks at hand, and predicted against measured."""
