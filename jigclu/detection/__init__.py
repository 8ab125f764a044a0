"""Fine-tuning of detectors with detectron2; the command is `detection/train_net.py`."""
