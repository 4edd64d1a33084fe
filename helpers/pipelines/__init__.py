"""The finished pipelines of the lessons, by name, in the course's order.

The modules named like them are generated from the notebooks' exported cells (``make export``); this list is written by
hand. A pipeline's framework is imported when it is first called, so that importing this package stays cheap.
``python -m helpers.pipelines NAME`` prints one of them as a file that needs nothing of the course.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

from helpers.folders import ImageFiles

__all__ = ["LESSONS", "PIPELINES"]


class LazyPipeline:
    """A pipeline that imports its module when it is needed."""

    def __init__(self, name: str):
        self.__name__ = name

    def load(self) -> Callable:
        """Import and return the function itself."""
        module_name = f"{__name__}.{self.__name__}"
        try:
            return getattr(importlib.import_module(module_name), self.__name__)
        except ModuleNotFoundError as error:
            if error.name != module_name:
                raise  # what the module itself needs
            message = f"helpers/pipelines/{self.__name__}.py is missing; make export writes it from its notebook"
            raise ModuleNotFoundError(message, name=module_name) from None

    def __call__(self, files: ImageFiles, **settings: object) -> Iterable:
        return self.load()(files, **settings)

    def __repr__(self) -> str:
        return f"<pipeline {self.__name__}>"


LESSONS = {  # each pipeline, and the notebook that makes it
    "load_everything": "01_load_everything",
    "generator": "02_python_generator",
    "threaded_generator": "02_python_generator",
    "keras_sequence": "03_keras_sequence",
    "tf1_queues": "04_tf1_queues",
    "tf_data": "05_tf_data",
    "tf_data_fast": "06_decode_less",
    "tf_data_packed": "07_decode_once",
}

PIPELINES = {name: LazyPipeline(name) for name in LESSONS}
