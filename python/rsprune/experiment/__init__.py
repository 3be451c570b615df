"""The controlled experiment: does a model learn better from the selected part than from everything?"""
