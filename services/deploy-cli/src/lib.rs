//! Runs commands on nodes through the deploy-manager.
