"""Draw a profile as one HTML file that needs nothing else: `report_html`."""
