"""From finished runs to tables, pictures and dashboards."""
