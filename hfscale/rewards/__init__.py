"""Learning from rewards that can be checked: the rewards, the groups of answers, what was learned."""
