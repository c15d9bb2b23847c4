"""The recipes as modules: `hfscale.recipes.pretrain.main(["--config", "tiny_cpu"])`."""
