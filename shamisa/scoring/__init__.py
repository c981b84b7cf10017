"""From images to scores: crops, frozen features, regressors, measures of agreement, the protocol."""
