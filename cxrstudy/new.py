"""Write a preset for own x-rays, sized to what their card holds."""
