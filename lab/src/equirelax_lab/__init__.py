"""The laboratory of equirelax: data, networks, tasks, recipes, runs, studies and reports that show what relaxing does."""
