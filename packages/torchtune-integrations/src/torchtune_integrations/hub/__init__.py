"""Publishing on the Hugging Face Hub: a model card from the run, checked files, one commit."""

from torchtune_integrations.hub.licence import Licence
from torchtune_integrations.hub.publication import Publication, prepare
from torchtune_integrations.hub.upload import push

__all__ = ["Licence", "Publication", "prepare", "push"]
