"""Describe the processors of the droplet that is played: one CPU, and GPUs that are not there."""

from __future__ import annotations

from typing import Any

from .identity import ARCHITECTURE, DEVICE, NOTICE

# The columns of rocprofv3's agent_info.csv in ROCm 7.0, in its order.
COLUMNS = [
    "Node_Id",
    "Logical_Node_Id",
    "Agent_Type",
    "Cpu_Cores_Count",
    "Simd_Count",
    "Cpu_Core_Id_Base",
    "Simd_Id_Base",
    "Max_Waves_Per_Simd",
    "Lds_Size_In_Kb",
    "Gds_Size_In_Kb",
    "Num_Gws",
    "Wave_Front_Size",
    "Num_Xcc",
    "Cu_Count",
    "Array_Count",
    "Num_Shader_Banks",
    "Simd_Arrays_Per_Engine",
    "Cu_Per_Simd_Array",
    "Simd_Per_Cu",
    "Max_Slots_Scratch_Cu",
    "Gfx_Target_Version",
    "Vendor_Id",
    "Device_Id",
    "Location_Id",
    "Domain",
    "Drm_Render_Minor",
    "Num_Sdma_Engines",
    "Num_Sdma_Xgmi_Engines",
    "Num_Sdma_Queues_Per_Engine",
    "Num_Cp_Queues",
    "Max_Engine_Clk_Ccompute",
    "Max_Engine_Clk_Fcompute",
    "Sdma_Fw_Version",
    "Fw_Version",
    "Capability",
    "Cu_Per_Engine",
    "Max_Waves_Per_Cu",
    "Family_Id",
    "Workgroup_Max_Size",
    "Grid_Max_Size",
    "Local_Mem_Size",
    "Hive_Id",
    "Gpu_Id",
    "Workgroup_Max_Dim_X",
    "Workgroup_Max_Dim_Y",
    "Workgroup_Max_Dim_Z",
    "Grid_Max_Dim_X",
    "Grid_Max_Dim_Y",
    "Grid_Max_Dim_Z",
    "Name",
    "Vendor_Name",
    "Product_Name",
    "Model_Name",
]

CPU: dict[str, Any] = {
    "Node_Id": 0,
    "Logical_Node_Id": 0,
    "Agent_Type": "CPU",
    "Cpu_Cores_Count": 20,
    "Name": "CPU (sandbox stand-in)",
    "Vendor_Name": "CPU",
    "Product_Name": "CPU (sandbox stand-in)",
    "Model_Name": NOTICE,
}
GPU: dict[str, Any] = {
    "Node_Id": 1,
    "Logical_Node_Id": 1,
    "Agent_Type": "GPU",
    "Simd_Count": 1216,
    "Max_Waves_Per_Simd": 8,
    "Lds_Size_In_Kb": 64,
    "Wave_Front_Size": 64,
    "Num_Xcc": 8,
    "Cu_Count": 304,
    "Simd_Per_Cu": 4,
    "Gfx_Target_Version": 90402,
    "Vendor_Id": 4098,
    "Device_Id": 0x74B5,
    "Max_Engine_Clk_Fcompute": 2100,
    "Workgroup_Max_Size": 1024,
    "Name": ARCHITECTURE,
    "Vendor_Name": "AMD",
    "Product_Name": DEVICE,
    "Model_Name": NOTICE,
}


def agents(gpus: int) -> list[dict[str, Any]]:
    """Return the CPU and so many GPUs; an agent's index is its place in the list, GPUs begin at 1."""
    more = ({**GPU, "Node_Id": index, "Logical_Node_Id": index, "Gpu_Id": index} for index in range(1, gpus + 1))
    return [CPU, *more]
