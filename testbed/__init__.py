"""What tests, benchmarks and assurance share: networks and data, made devices and artefacts, results and timing."""
