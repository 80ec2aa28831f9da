"""Engines that can hold a target model for the verifier."""
