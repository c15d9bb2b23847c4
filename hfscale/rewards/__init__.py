"""Learning from rewards that can be checked: rewards, groups of answers, what was learned."""
