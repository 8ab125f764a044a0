"""Measurements of what pre-training costs, part by part, compared with the published code.

Measuring and reporting are separate: the modules of the parts return numbers, `tables` turns
numbers into tables, and `report` writes tables.
"""
