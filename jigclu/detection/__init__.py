"""Fine-tuning of detectors with detectron2; `detection/train_net.py` is the command."""
