"""pytest plugin: llama.cpp's server tests with a model on this machine in place of those that they would download.

MIKV_TEST_MODEL names the file."""

import os

import utils

MODEL = os.environ["MIKV_TEST_MODEL"]


def start_with_local_model(start):
    def started(self, *args, **kwargs):
        if self.model_hf_repo or self.model_hf_file or self.model_url:
            self.model_file = MODEL
            self.model_hf_repo = self.model_hf_file = self.model_url = None
        return start(self, *args, **kwargs)

    return started


utils.ServerProcess.start = start_with_local_model(utils.ServerProcess.start)
utils.ServerPreset.load_all = staticmethod(lambda: None)  # it would fetch every model
utils.download_file = lambda *args, **kwargs: MODEL
