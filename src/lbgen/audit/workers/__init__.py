"""Workers that observe the images of an audit: this process, several local processes, or Ray actors.

One process reads the files, finds new images, and writes the cache. Workers decode images and run the model. Batches do
not depend on the number of workers, so the rows are always the same.
"""
