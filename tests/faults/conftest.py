"""The servers of the store tests serve these tests as well."""

from tests.storage.conftest import azurite, fake_gcs, moto

__all__ = ["azurite", "fake_gcs", "moto"]
