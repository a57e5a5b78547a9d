"""equirelax: relax equivariance while training, project back exactly, and check it."""
