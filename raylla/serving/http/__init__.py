"""What clients of the endpoint reach over HTTP: routes, bodies, errors, the playground."""
