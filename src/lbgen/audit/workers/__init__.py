"""Who observes the images of an audit: this process, several processes of this machine, or actors of Ray.

One process reads the files, says which images are new, and writes the cache. Workers decode images and run the model.
They get the batches that one worker would have, so the rows are the same however many there are.
"""
