"""From records to tables, pictures and claims with intervals."""
