"""Packages of the library that have the name of a recipe."""

import inspect
from types import ModuleType
from typing import Any


class RecipeRoom(ModuleType):
    """A package that can be called: `hfscale.report(runs=[...])` is the recipe, and
    `hfscale.report.page` a module of the library.
    """

    def __call__(self, *first: Any, **options: Any) -> Any:
        """Run the recipe; see `hfscale.api.call_recipe`."""
        from hfscale.api import call_recipe

        return call_recipe(self.__name__.rpartition(".")[2], *first, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        from hfscale.api import recipe_function

        return inspect.signature(recipe_function(self.__name__.rpartition(".")[2]))
