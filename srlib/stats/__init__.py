"""Statistics: numbers in, numbers out, each with an interval. No torch.

intervals    bootstrap and jackknife intervals of items or of groups of items; means, means over seeds
agreement    scores against gold scores, pairs of scores against preferences, N scores of one item with each other
comparison   one arm against others on the same items: paired differences, permutation tests, Holm, win rates
calibration  confidence against correctness: calibration error, abstention, temperature
ppi          the mean that people would give, from a few of their scores and many of a judge's"""
