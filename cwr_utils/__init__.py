"""Class-weighted convolutional features for visual instance search.

The package behind the workbook: every line of logic that the notebooks call.
Jimenez, Alvarez and Giro-i-Nieto, "Class-Weighted Convolutional Features for
Visual Instance Search", BMVC 2017. Importing it loads no deep-learning library.
"""

__version__ = "0.2.0"
