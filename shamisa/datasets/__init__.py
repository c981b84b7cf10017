"""Human scores: label files, published data sets, splits into train, val and test."""
