"""Networks, and weights of any origin."""
