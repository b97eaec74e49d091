"""lm-eval with a mikv cache: the model "mikv-hf", and lm-eval's own command.

    python -m mikv.lm_eval --model mikv-hf --model_args pretrained=DIR,gguf_file=FILE,spec=mikv --tasks gsm8k

Log-likelihoods are read through the compressed cache, which --model hf never fills (docs/python-eval.md).
mikv.lm_eval.model has the class.
"""
