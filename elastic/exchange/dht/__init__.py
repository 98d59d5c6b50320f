"""The DHT: small signed records among strangers, and how one gets in."""
