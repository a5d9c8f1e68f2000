"""Code shared by tests, benchmarks and assurance: networks and data, devices and artefacts, results and timing."""
