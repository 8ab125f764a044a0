"""From image files to batches of uint8 patches; each module has one job."""
