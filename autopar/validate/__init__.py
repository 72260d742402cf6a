"""Published training runs against autopar's prices: ``autopar validate TABLE.csv``."""
