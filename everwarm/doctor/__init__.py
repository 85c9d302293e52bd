"""`everwarm doctor`: what is wrong with a cluster's machines, and what to do.

``node`` looks at the machine that it runs on; ``ray_up`` and ``asking`` have it run on others, over ssh and as a Ray
actor; ``examination`` puts what they found together as ``facts``; ``findings`` judges, and touches nothing.
"""
