"""Pure functions of tensors: no files, no gin.

"Published" refers to Chen et al., CVPR 2021, and the code released with it.
"""
