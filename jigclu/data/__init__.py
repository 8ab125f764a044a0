"""From image files to batches on the training device.

"Published" refers to Chen et al., CVPR 2021, and the code released with it.
"""
